"""The table of cases."""

from cases_flux import FLUX
from cases_unet import SD1

CASES = [*SD1, *FLUX]
