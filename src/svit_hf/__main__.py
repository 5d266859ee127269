# SPDX-License-Identifier: Apache-2.0
"""`python -m svit_hf COMMAND` is `svit-hf COMMAND`, for launchers that start modules."""

import sys

from svit_hf.cli import main


# workers of a data loader import this file again under another name
if __name__ == "__main__":
    sys.exit(main())
