from bench.spot_plot import *
