"""One file per architecture; `primelens.export.registry` imports all of them."""
