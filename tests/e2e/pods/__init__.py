"""The deployment of deploy/kubernetes on one machine: every pod in namespaces of its own, on a network of their own.

What is real: the programs, their environment and flags, users, read-only roots, addresses, the store, Ray's Redis,
Ray's autoscaler, how pods end. What stands in for Kubernetes: `operator` does what KubeRay's operator does with a
RayCluster, `api` is the few calls of the Kubernetes API that Ray's autoscaler makes, `kubelet` probes and ends pods and
knows who is behind the Service. What is missing: limits of memory and CPU, network policies, DNS, probes of liveness.
"""
