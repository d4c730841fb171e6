"""``python -m primelens.bench``: the bench without the ``primelens`` command."""

import sys

from primelens.bench.commands import main
from primelens.errors import PrimelensError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except PrimelensError as error:
        sys.exit(f"primelens.bench: error: {error}")
