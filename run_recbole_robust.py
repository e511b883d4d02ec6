"""The command line of recbole-robust from a source tree: python run_recbole_robust.py --model=MF --dataset=ml-100k"""

import sys

from recbole_robust.cli import main

if __name__ == "__main__":
    sys.exit(main())
