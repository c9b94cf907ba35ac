#!/usr/bin/env python3
"""Run the fake Clerk Backend API; see `python3 test/fake_clerk.py --help`.

The code is in the package of the same name beside this file. No byte code is kept, because tests run this file as
several users, some of whom may not write here.
"""

import sys

sys.dont_write_bytecode = True

from fake_clerk.command import main  # noqa: E402  (must follow the setting above)

if __name__ == "__main__":
    main()
