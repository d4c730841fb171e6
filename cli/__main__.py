"""``python -m primelens.cli`` is the ``primelens`` command."""

from primelens.cli import main

main()
