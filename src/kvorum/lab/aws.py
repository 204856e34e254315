"""The host of a lab worker: the EC2 instance to create, and what EC2 reports about it."""

import msgspec

from kvorum.lab.fields import Format, Span, written

_ID = r"([0-9a-f]{8}|[0-9a-f]{17})"
_DIGITS = "8 or 17 hex digits"

AMI_ID = Format(rf"ami-{_ID}", f"an AMI id (ami- and {_DIGITS})")
VPC_ID = Format(rf"vpc-{_ID}", f"a VPC id (vpc- and {_DIGITS})")
SUBNET_ID = Format(rf"subnet-{_ID}", f"a subnet id (subnet- and {_DIGITS})")
SECURITY_GROUP_ID = Format(rf"sg-{_ID}", f"a security group id (sg- and {_DIGITS})")
REGION = Format(r"[a-z]{2,}(-[a-z]+)+-[0-9]+", "an AWS region (as us-east-1)")
INSTANCE_TYPE = Format(
    r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*", "an EC2 instance type (as m5zn.metal)"
)
KEY_NAME = Format(
    r"[!-~]([ -~]{0,253}[!-~])?", "the name of a key pair (up to 255 printable ASCII characters)"
)
INSTANCE_PROFILE = Format(
    r"(arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/([!-~]+/)?)?[A-Za-z0-9_+=,.@-]{1,128}",
    "the name or ARN of an IAM instance profile",
)
TAG_KEY = Format(
    r"(?!aws:)(?s:.){1,128}", "the key of a tag (1 to 128 characters, not starting with aws:)"
)
TAG_VALUE = Format(r"(?s:.){0,256}", "the value of a tag (up to 256 characters)")

_TAGS = Span(0, 50, "tags")


class _VolumeType(msgspec.Struct, frozen=True):
    """The limits of an EBS volume type: its sizes in GB, and the IOPS that can be provisioned.

    `iops` is None if they cannot.
    """

    sizes: Span
    iops: Span | None = None
    iops_per_gb: int = 0
    needs_iops: bool = False


# AWS, "Amazon EBS volume types", as of 2026; only types that can be root volumes. gp3 and io2 allow
# more than 16 TiB by now. That limit, which all types but the oldest have, is more than labs need,
# and bounds the cost of a typing error.
_VOLUME_TYPES = {
    "gp2": _VolumeType(Span(1, 16384, "GB")),
    "gp3": _VolumeType(Span(1, 16384, "GB"), Span(3000, 80000, "IOPS"), iops_per_gb=500),
    "io1": _VolumeType(
        Span(4, 16384, "GB"), Span(100, 64000, "IOPS"), iops_per_gb=50, needs_iops=True
    ),
    "io2": _VolumeType(
        Span(4, 16384, "GB"), Span(100, 256000, "IOPS"), iops_per_gb=1000, needs_iops=True
    ),
    "standard": _VolumeType(Span(1, 1024, "GB")),
}


class EbsVolume(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The root volume of the host.

    Attributes:
        size_gb: in GB (AWS means GiB).
        volume_type: `gp2`, `gp3`, `io1`, `io2` or `standard`.
        iops: provisioned operations per second; required for io1 and io2, optional for gp3.
        encrypted: whether it is encrypted at rest.
    """

    size_gb: int = written(128)
    volume_type: str = written("gp3")
    iops: int | None = None
    encrypted: bool = written(True)

    def problems(self, path: str) -> list[str]:
        """Return what is wrong with it; `path` is its JSON path."""
        limits = _VOLUME_TYPES.get(self.volume_type)
        if limits is None:
            return [
                f"{path}.volumeType {self.volume_type!r} is not one of {', '.join(_VOLUME_TYPES)}"
            ]
        return limits.sizes.problems_of(f"{path}.sizeGb", self.size_gb) + self._problems_of_iops(
            path, limits
        )

    def _problems_of_iops(self, path: str, limits: _VolumeType) -> list[str]:
        if self.iops is None:
            return (
                [f"{path}.iops is missing; {self.volume_type} needs it"]
                if limits.needs_iops
                else []
            )
        if limits.iops is None:
            return [f"{path}.iops is {self.iops}; {self.volume_type} takes none"]
        if problems := limits.iops.problems_of(f"{path}.iops", self.iops):
            return problems
        # The baseline of gp3 is included with every size; the ratio limits only what is above it.
        most = max(limits.iops.low, limits.iops_per_gb * self.size_gb)
        if self.iops > most:
            volume = f"{self.size_gb} GB of {self.volume_type}"
            return [f"{path}.iops is {self.iops}; {volume} take {most} at most"]
        return []


class AwsEc2Config(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The EC2 instance to run a worker on. The provisioner chooses what is None.

    Attributes:
        region: such as `us-east-1`.
        ami_id: the image to boot, such as `ami-0123456789abcdef0`.
        instance_type: CML runs virtual machines itself, so it should be a metal type.
        key_name: the key pair for SSH.
        vpc_id: the network.
        subnet_id: the subnet of it.
        security_group_ids: the firewall rules.
        ebs: the root volume.
        iam_instance_profile: the permissions of the host in AWS: a name or an ARN.
        tags: of the instance and its volume, at most 50.
    """

    region: str = written("us-east-1")
    ami_id: str | None = None
    instance_type: str = written("m5zn.metal")
    key_name: str | None = None
    vpc_id: str | None = None
    subnet_id: str | None = None
    security_group_ids: list[str] = msgspec.field(default_factory=list)
    ebs: EbsVolume = msgspec.field(default_factory=EbsVolume)
    iam_instance_profile: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)

    def problems(self, path: str) -> list[str]:
        """Return what is malformed, not what is missing; `path` is its JSON path."""
        return [
            *REGION.problems_of(f"{path}.region", self.region),
            *AMI_ID.problems_of(f"{path}.amiId", self.ami_id),
            *INSTANCE_TYPE.problems_of(f"{path}.instanceType", self.instance_type),
            *KEY_NAME.problems_of(f"{path}.keyName", self.key_name),
            *VPC_ID.problems_of(f"{path}.vpcId", self.vpc_id),
            *SUBNET_ID.problems_of(f"{path}.subnetId", self.subnet_id),
            *self._problems_of_security_groups(f"{path}.securityGroupIds"),
            *self.ebs.problems(f"{path}.ebs"),
            *INSTANCE_PROFILE.problems_of(f"{path}.iamInstanceProfile", self.iam_instance_profile),
            *self._problems_of_tags(f"{path}.tags"),
        ]

    def _problems_of_security_groups(self, path: str) -> list[str]:
        problems: list[str] = []
        for index, group in enumerate(self.security_group_ids):
            problems += SECURITY_GROUP_ID.problems_of(f"{path}[{index}]", group)
            if group in self.security_group_ids[:index]:
                problems.append(f"{path}[{index}] {group!r} is a duplicate")
        return problems

    def _problems_of_tags(self, path: str) -> list[str]:
        problems = _TAGS.problems_of(f"the length of {path}", len(self.tags))
        for key, value in self.tags.items():
            problems += TAG_KEY.problems_of(f"{path}: the key", key)
            problems += TAG_VALUE.problems_of(f"{path}.{key}", value)
        return problems


class Ec2Status(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What EC2 reports about the instance. All fields are empty until it exists.

    Attributes:
        instance_id: such as `i-0123456789abcdef0`.
        state: EC2's name of it, such as `running`.
        public_ip: its public address.
        private_ip: its address in the VPC.
    """

    instance_id: str = ""
    state: str = ""
    public_ip: str = ""
    private_ip: str = ""
