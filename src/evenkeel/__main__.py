# SPDX-License-Identifier: Apache-2.0
"""`python -m evenkeel` is `evenkeel`."""

from evenkeel.cli import main

if __name__ == "__main__":
    main()
