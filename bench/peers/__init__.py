"""What runs in the environments of peers: files that need nothing of primelens.

`worker` is started by path with a peer's own interpreter and speaks JSON lines; `generate` drives
the peers that have transformers' ``generate``. The ``*.txt`` files pin what each environment holds.
"""
