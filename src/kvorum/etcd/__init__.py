"""The only code that knows the driver (aetcd) and its transport (grpc)."""
