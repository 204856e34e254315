"""The configuration of AWS and CML: errors are found, valid values pass, secrets stay secret."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.lab import AwsEc2Config, CmlConfig, EbsVolume

ID = "0123456789abcdef0"

FULL = AwsEc2Config(
    region="eu-central-1",
    ami_id=f"ami-{ID}",
    instance_type="c5.metal",
    key_name="lab key",
    vpc_id=f"vpc-{ID}",
    subnet_id="subnet-0123abcd",
    security_group_ids=[f"sg-{ID}", "sg-0123abcd"],
    ebs=EbsVolume(size_gb=500, volume_type="io2", iops=10000, encrypted=False),
    iam_instance_profile="arn:aws:iam::123456789012:instance-profile/labs/worker",
    tags={"team": "labs", "cost center": ""},
)


# --- AWS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [AwsEc2Config(), FULL], ids=["defaults", "full"])
def test_a_good_host_has_no_problems(config: AwsEc2Config) -> None:
    assert config.problems("spec.aws") == []


def test_every_problem_of_a_host_is_told_at_once() -> None:
    """Reported one by one, they would take as many writes as there are problems."""
    config = AwsEc2Config(
        region="mars",
        ami_id="foo",
        instance_type="large",
        key_name=" ",
        vpc_id="vpc-",
        subnet_id="subnet-XYZ",
        security_group_ids=["default", f"sg-{ID}", f"sg-{ID}"],
        ebs=EbsVolume(size_gb=0, volume_type="gp2", iops=100),
        iam_instance_profile="arn:aws:iam::1:role/x",
        tags={"aws:name": "x" * 257},
    )

    assert config.problems("spec.aws") == [
        "spec.aws.region 'mars' is not an AWS region (as us-east-1)",
        "spec.aws.amiId 'foo' is not an AMI id (ami- and 8 or 17 hex digits)",
        "spec.aws.instanceType 'large' is not an EC2 instance type (as m5zn.metal)",
        "spec.aws.keyName ' ' is not the name of a key pair (up to 255 printable ASCII characters)",
        "spec.aws.vpcId 'vpc-' is not a VPC id (vpc- and 8 or 17 hex digits)",
        "spec.aws.subnetId 'subnet-XYZ' is not a subnet id (subnet- and 8 or 17 hex digits)",
        (
            "spec.aws.securityGroupIds[0] 'default' is not a security group id "
            "(sg- and 8 or 17 hex digits)"
        ),
        f"spec.aws.securityGroupIds[2] 'sg-{ID}' is a duplicate",
        "spec.aws.ebs.sizeGb is 0; it must be from 1 to 16384 GB",
        "spec.aws.ebs.iops is 100; gp2 takes none",
        (
            "spec.aws.iamInstanceProfile 'arn:aws:iam::1:role/x' is not the name or ARN of an IAM "
            "instance profile"
        ),
        (
            "spec.aws.tags: the key 'aws:name' is not the key of a tag "
            "(1 to 128 characters, not starting with aws:)"
        ),
        f"spec.aws.tags.aws:name {'x' * 257!r} is not the value of a tag (up to 256 characters)",
    ]


@pytest.mark.parametrize(
    "text", ["ami-0123abc", "ami-0123ABCD", "ami-0123abcd0", "ami-0123abcd\n", "AMI-0123abcd", ""]
)
def test_an_id_must_be_whole(text: str) -> None:
    assert len(AwsEc2Config(ami_id=text).problems("spec.aws")) == 1


@pytest.mark.parametrize(
    "name",
    [
        "m5zn.metal",
        "t3.micro",
        "c7i.metal-24xl",
        "u-6tb1.112xlarge",
        "u7in-32tb.224xlarge",
        "mac2-m2pro.metal",
    ],
)
def test_instance_types_come_in_many_shapes(name: str) -> None:
    assert AwsEc2Config(instance_type=name).problems("spec.aws") == []


@pytest.mark.parametrize(
    "name", ["us-gov-west-1", "ap-southeast-2", "us-isob-east-1", "eusc-de-east-1"]
)
def test_regions_come_in_many_shapes(name: str) -> None:
    assert AwsEc2Config(region=name).problems("spec.aws") == []


def test_tags_are_counted() -> None:
    """EC2 allows 50, and would reject the instance after everything else has been created."""
    tags = {f"tag-{number}": "" for number in range(51)}

    assert AwsEc2Config(tags=tags).problems("spec.aws") == [
        "the length of spec.aws.tags is 51; it must be from 0 to 50 tags"
    ]


# Type, size, IOPS, and what AWS would say.
VOLUMES = [
    ("gp2", 1, None, True),
    ("gp2", 16384, None, True),
    ("gp2", 16385, None, False),
    ("gp3", 1, 3000, True),
    ("gp3", 1, 3001, False),
    ("gp3", 10, 5000, True),
    ("gp3", 10, 5001, False),
    ("gp3", 100, None, True),
    ("gp3", 100, 2999, False),
    ("gp3", 16384, 80000, True),
    ("gp3", 16384, 80001, False),
    ("io1", 3, 100, False),
    ("io1", 4, 200, True),
    ("io1", 4, 201, False),
    ("io1", 100, None, False),
    ("io1", 2000, 64000, True),
    ("io1", 2000, 64001, False),
    ("io2", 4, 4000, True),
    ("io2", 4, 4001, False),
    ("io2", 4, 99, False),
    ("io2", 1000, None, False),
    ("io2", 1000, 256000, True),
    ("standard", 1024, None, True),
    ("standard", 1025, None, False),
    ("standard", 10, 100, False),
    ("st1", 500, None, False),
    ("", 10, None, False),
]


@pytest.mark.parametrize(("volume_type", "size_gb", "iops", "is_good"), VOLUMES)
def test_a_volume_must_be_one_that_ebs_sells(
    volume_type: str, size_gb: int, iops: int | None, is_good: bool
) -> None:
    problems = EbsVolume(volume_type=volume_type, size_gb=size_gb, iops=iops).problems("ebs")

    assert len(problems) == (0 if is_good else 1)


def test_a_volume_that_is_too_fast_for_its_size_is_told_how_fast_it_may_be() -> None:
    volume = EbsVolume(volume_type="io1", size_gb=10, iops=501)

    assert volume.problems("spec.aws.ebs") == [
        "spec.aws.ebs.iops is 501; 10 GB of io1 take 500 at most"
    ]


# --- CML ------------------------------------------------------------------------------------------

# Something that cannot be part of a repr by accident.
secrets = st.text(min_size=1).map(lambda text: f"!{text}!")


def test_a_good_setup_has_no_problems() -> None:
    assert CmlConfig().problems("spec.cml") == []
    assert (
        CmlConfig(license_token="token", admin_password="pass word", max_nodes=20).problems(
            "spec.cml"
        )
        == []
    )


def test_every_problem_of_a_setup_is_told_at_once() -> None:
    config = CmlConfig(
        license_token="hush \n",
        admin_username="",
        admin_password="",
        max_nodes=0,
        max_unlicensed_nodes=-1,
    )

    assert config.problems("spec.cml") == [
        "spec.cml.licenseToken is empty, or has white space around it",
        "spec.cml.adminUsername '' is not a user name of CML (up to 64 letters, digits and _.@-)",
        "spec.cml.adminPassword is empty, or has white space around it",
        "spec.cml.maxNodes is 0; it must be at least 1 nodes",
        "spec.cml.maxUnlicensedNodes is -1; it must be at least 1 nodes",
    ]


@given(secrets, secrets)
def test_secrets_show_in_no_repr_and_no_problem(token: str, password: str) -> None:
    """Logs and error reports are read by more people than the store is."""
    config = CmlConfig(license_token=f"{token} ", admin_password=f" {password}")
    shown = [repr(config), str(config), f"{config}", repr([config]), str(config.__rich_repr__())]
    shown += config.problems("spec.cml")

    for text, secret in itertools.product(shown, [token, password]):
        assert secret not in text
        assert repr(secret)[1:-1] not in text


def test_a_repr_tells_whether_there_is_a_secret() -> None:
    shown = repr(CmlConfig(license_token="hush"))

    assert shown == (
        "CmlConfig(license_token='***', admin_username='admin', admin_password=None, "
        "max_nodes=None, "
        "max_unlicensed_nodes=5)"
    )


def test_secrets_are_in_the_bytes() -> None:
    """The store keeps them; a masked one would be lost by the first update."""
    config = CmlConfig(license_token="hush", admin_password="hushed")

    assert msgspec.json.decode(msgspec.json.encode(config), type=CmlConfig) == config


def test_the_licence_decides_how_many_nodes_may_run() -> None:
    config = CmlConfig(max_nodes=300, max_unlicensed_nodes=7)

    assert config.node_limit(licensed=True) == 300
    assert config.node_limit(licensed=False) == 7


# --- in the bytes ---------------------------------------------------------------------------------


def test_defaults_that_mean_something_are_written_out() -> None:
    """A stored worker must not change when a later release has other defaults."""
    assert msgspec.to_builtins(AwsEc2Config()) == {
        "region": "us-east-1",
        "instanceType": "m5zn.metal",
        "ebs": {"sizeGb": 128, "volumeType": "gp3", "encrypted": True},
    }
    assert msgspec.to_builtins(CmlConfig()) == {"adminUsername": "admin", "maxUnlicensedNodes": 5}


def test_a_full_host_comes_back_as_it_was() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FULL), type=AwsEc2Config) == FULL
