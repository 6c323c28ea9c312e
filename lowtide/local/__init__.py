"""The local runtime behind `lowtide up`: the manifests, run on one machine."""
