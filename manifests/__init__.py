"""What is applied to a cluster, checked without one: `make manifests`."""
