"""Configurations of containerd as they are found on nodes, by the version of their format."""

# What Debian's package installs: no runtime is named.
DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""

# With the driver of cgroups that kubeadm wants, a comment at every turn, and no newline at the end.
KUBEADM = """\
# owned by the cluster's operators
version = 2   # do not forget

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example/pause:3.10"	# a mirror
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
[grpc]
max_recv_message_size = 16_777_216
# the end"""

# Another default runtime, which has a program of its own.
GPU = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "gpu"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gpu]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gpu.options]
        BinaryName = "/usr/bin/gpu-container-runtime"
        SystemdCgroup = true
"""

VERSION_1 = """\
[plugins.cri.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""

VERSION_3 = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
"""

OF_VERSION_2 = {
    "missing": None,
    "empty": "",
    "comments": "# nothing yet\n\n",
    "debian": DEBIAN,
    "kubeadm": KUBEADM,
    "gpu": GPU,
    "crlf": KUBEADM.replace("\n", "\r\n"),
}
