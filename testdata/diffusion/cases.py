"""The table of cases."""

from cases_dit import DIT
from cases_flux import FLUX
from cases_unet import SD1, SDXL

CASES = [*SD1, *SDXL, *FLUX, *DIT]
