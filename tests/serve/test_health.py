"""What the server says of itself."""

import pytest
from served import Served
from starlette.testclient import TestClient


def test_root_health_and_metrics(app_client: TestClient) -> None:
    assert app_client.get("/").text == "Ollama is running"
    assert app_client.head("/").status_code == 200
    health = app_client.get("/health").json()
    assert health["status"] == "ok"
    assert "sizewise_waiting_requests 0.0" in app_client.get("/metrics").text


@pytest.mark.model
def test_a_real_server_answers(server: Served) -> None:
    with server.client() as client:
        assert client.get("/").text == "Ollama is running"
        assert client.get("/docs").status_code == 404
