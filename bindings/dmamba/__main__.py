"""``python -m dmamba``: the command line where the script's folder is not on the PATH."""

import sys

from dmamba.commands import main

sys.exit(main())
