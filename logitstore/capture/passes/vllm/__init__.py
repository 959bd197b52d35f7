"""The engine vLLM, in this process: it reads many rows at once, on many devices.

    options.py       what `--engine-args` says, and which of the two ways is taken
    library.py       vLLM itself: whether it is installed, and of a version that is known here
    engine.py        a running vLLM: started, asked, started again when it has died
    public_pass.py   the public way: what `LLM.generate` gives, as a server does
    worker_pass.py   the worker way: everything that a store can keep, made on the device
    extension.py     the half of the worker way that runs inside vLLM's workers
    hooks.py         where it gets hidden states there
    summaries.py     and what it makes of them
    completer.py     completions that vLLM writes

The public way gives the most probable tokens at each place, and the token's own log-probability;
the tail is what they leave to one, and entropy is not known. The worker way is taken where options
ask for more (`--temperature`, `--logit-std`, `--draws`), or where the user says so.
"""
