from bench.portal_volume import *
