"""An engine that is a server: vLLM's, another with its `prompt_logprobs`, or SGLang's.

    options.py       what `--engine-args` says
    client.py        requests: concurrent, paced, tried again, with a key from the environment
    apis.py          how vLLM's and SGLang's servers are asked, and what they answer
    server_pass.py   the engine

A server says the k most probable tokens, and the log-probability of each token itself. The tail is
what they leave to one; entropy is not known. Token ids are sent, never text, and what comes back is
checked as an import is.
"""
