"""Measures primelens and its peers: speed beside the machine's limits, quality beside speed.

The harness knows no model. It drives a system under test through the three methods of
`primelens.bench.system.System`, keeps every raw sample, and says how far each figure lies from what
this very machine could do in this very run.
"""
