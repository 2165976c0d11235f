"""Checks of the image and of docker-compose.yml that the linters of `scripts/test containers` do not have.

usage: check.py SHOPBELL    (from the top of the checkout, with the binary that was built there)"""

import sys

import compose
import dockerfile
import observability
from checkout import COMPLAINTS

shopbell = sys.argv[1]
dockerfile.checks(shopbell)
compose.checks(shopbell)
observability.checks()
for complaint in COMPLAINTS:
    print(f"containers: {complaint}", file=sys.stderr)
sys.exit(1 if COMPLAINTS else 0)
