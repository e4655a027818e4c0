"""The broker side: worker process, control plane, client library and the `recon` command."""
