"""Each module here implements a contract of `contracts.py` over one library."""
