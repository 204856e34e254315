"""The backends that the suite of the storage port runs on.

Another backend joins by one more parameter of `backend`; no test may reach below the port.
"""

import pytest

import kvorum


@pytest.fixture(params=["etcd"])
def backend(kvorum_client: kvorum.Client) -> kvorum.StorageBackend:
    return kvorum.EtcdStorageBackend(kvorum_client, kvorum_client.settings.prefix)
