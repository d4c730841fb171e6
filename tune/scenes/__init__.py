"""Scenes: a procedural world of pictures whose every true caption is known.

A scene is a few groups of objects (drawn as emoji) in a place at a time of day. It is made from a
counter-based generator, so it is never stored: ``scene(split, index)`` is the same for ever.
"""
