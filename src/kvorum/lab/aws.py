"""The host of a lab worker: what is asked of AWS EC2, and what EC2 says about it."""

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
    """What EBS sells under one name: sizes in GB, and how many IOPS it can be asked for.

    No `iops` if it cannot.
    """

    sizes: Span
    iops: Span | None = None
    iops_per_gb: int = 0
    needs_iops: bool = False


# AWS, "Amazon EBS volume types", as of 2026; only types that can be root volumes. gp3 and io2 grow
# beyond 16 TiB by now. Every type but the oldest can be that large, which is more than labs need,
# and far more than a slip should buy.
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
        iops: operations per second to pay for; must be given for io1 and io2, may be for gp3.
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
        # The baseline of gp3 comes with every size; the ratio is about what is added to it.
        most = max(limits.iops.low, limits.iops_per_gb * self.size_gb)
        if self.iops > most:
            return [
                f"{path}.iops is {self.iops}; {self.size_gb} GB of {self.volume_type} take {most} at most"
            ]
        return []


class AwsEc2Config(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The EC2 instance to run a worker on. What is None is left to whoever provisions it.

    Attributes:
        region: where, as `us-east-1`.
        ami_id: the image to boot, as `ami-0123456789abcdef0`.
        instance_type: how large. CML runs virtual machines itself, so it should be a metal type.
        key_name: the key pair for SSH.
        vpc_id: the network.
        subnet_id: the part of it.
        security_group_ids: the firewalls around it.
        ebs: the root volume.
        iam_instance_profile: what the host may do in AWS: a name or an ARN.
        tags: for the instance and its volume, at most 50.
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
        """Return what is wrong with it, not what is missing; `path` is its JSON path."""
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
        for place, group in enumerate(self.security_group_ids):
            problems += SECURITY_GROUP_ID.problems_of(f"{path}[{place}]", group)
            if group in self.security_group_ids[:place]:
                problems.append(f"{path}[{place}] {group!r} is there already")
        return problems

    def _problems_of_tags(self, path: str) -> list[str]:
        problems = _TAGS.problems_of(f"the length of {path}", len(self.tags))
        for key, value in self.tags.items():
            problems += TAG_KEY.problems_of(f"{path}: the key", key)
            problems += TAG_VALUE.problems_of(f"{path}.{key}", value)
        return problems


class Ec2Status(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What EC2 says about the instance. All empty as long as there is none.

    Attributes:
        instance_id: as `i-0123456789abcdef0`.
        state: in EC2's words, as `running`.
        public_ip: its address from outside.
        private_ip: its address in the VPC.
    """

    instance_id: str = ""
    state: str = ""
    public_ip: str = ""
    private_ip: str = ""
