"""`python -m abi_jax.cli`, for where the `abi` script is not on the path."""

import sys

from abi_jax.cli import main

sys.exit(main())
