"""The only code that knows the driver (aetcd) and its transport (grpc)."""

from kvorum.etcd.transport import fork as fork  # before anything else: gRPC is loaded there
