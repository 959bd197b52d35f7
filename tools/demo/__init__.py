"""Run the main job on real text through the public commands, from training models to a table.

    bash tools/demo.sh            (or, where everything is installed: python -m tools.demo)

A teacher and two tokenizers of different kinds are trained here, because no model hub is needed
for a demo; they are ordinary `transformers` folders and stand in for the model a user has. From
there on nothing is private: `logitstore capture`, `logitstore verify`, `distill train` and
`distill evaluate` run as their own processes, as a user would run them, and the table holds what
they measured.
"""
