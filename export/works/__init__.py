"""Reference works, one file per family of models; `primelens.export.work` imports all of them."""
