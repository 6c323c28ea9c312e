"""The local runtime behind `lowtide up`: runs the manifests on one machine."""
