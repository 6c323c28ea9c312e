from bench.batch_files import *
