"""Sequential Monte Carlo: weights, resampling and the exponent ramp, for any particles."""
