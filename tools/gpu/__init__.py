"""What only a CUDA machine can show: correctness in half precision, speed and memory on a device.

    bash tools/gpu/run.sh                  every stage; results in build/gpu
    bash tools/gpu/run.sh --cpu            the same code at tiny sizes: does it run at all?

Each stage is a process with a time limit (two minutes; eight for the last) and leaves one JSON
file. A run that was cut off goes on with the stages that are missing, and within a stage with what
it had not measured:

    checks    the tests marked `gpu`
    capture   a teacher pass of 1.2B parameters beside its bare forward pass
    losses    every loss beside Liger's fused cross-entropy, on hidden states
    steps     training steps of a student of 1.1B beside `Trainer` with Liger, and a live teacher
    real      `tools.experiment_real` at its GPU size
"""
