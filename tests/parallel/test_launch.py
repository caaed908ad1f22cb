"""What a process reads of its launcher's words."""

import json

import pytest

from lmxexp.parallel.launch import Launch, launched


@pytest.fixture
def file(tmp_path):
    def write(content):
        (tmp_path / "file").write_text(content)
        return str(tmp_path / "file")

    return write


def test_ring(file):
    hosts = [["10.0.0.1:5000", "10.0.1.1:5001"], ["10.0.0.2:5002", "10.0.1.2:5003"]]
    env = {"MLX_RANK": "1", "MLX_HOSTFILE": file(json.dumps(hosts))}
    assert launched(env) == Launch(1, 2, "ring", "10.0.0.1")


def test_nccl():
    env = {"MLX_RANK": "3", "MLX_WORLD_SIZE": "8", "NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": "12345"}
    assert launched(env) == Launch(3, 8, "nccl", "127.0.0.1")


def test_jaccl(file):
    devices = [[None, "rdma_en5"], ["rdma_en5", None]]
    env = {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323", "MLX_IBV_DEVICES": file(json.dumps(devices))}
    assert launched(env) == Launch(0, 2, "jaccl", "10.0.0.1")


def test_mpi():
    assert launched({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}) == Launch(1, 4, "mpi", "")


def test_by_itself(file):
    assert launched({}) is None
    assert launched({"MLX_RANK": "0", "MLX_HOSTFILE": file("\n")}) is None, "mlx.launch -n 1 --backend ring"
    assert launched({"MLX_RANK": "0", "MLX_WORLD_SIZE": "1", "NCCL_HOST_IP": "127.0.0.1"}) is None
    assert launched({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}) is None
