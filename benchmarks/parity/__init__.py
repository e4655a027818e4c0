"""Our networks next to upstream's ReconViaGen, on the same random weights and inputs."""
