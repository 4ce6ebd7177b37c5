"""Quantization: format x granularity x calibration x layers. Pure functions here, the steps beside them."""
