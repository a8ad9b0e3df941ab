"""A stand-in for the trainer package, in the operator's image: small enough to be built for every run of CI."""
