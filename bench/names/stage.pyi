from bench.stage import *
