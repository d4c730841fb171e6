"""The decode loop: one object decides (`search`), one executes and owns the memory (`session`).

`primelens.decoding.loop.decode` is the whole of it in six lines.
"""
