from bench.spot_replay import *
