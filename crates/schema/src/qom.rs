//! The object tree, its types, and objects that users make.

use crate::{commands, events};
use qapi::{Command, Describe, Event, Map, Value};

commands![
    QomList,
    QomGet,
    QomSet,
    QomListTypes,
    QomListProperties,
    DeviceListProperties,
    DeviceAdd,
    DeviceDel,
    ObjectAdd,
    ObjectDel,
    QueryIothreads,
];
events![VserportChange, DeviceDeleted];

/// The properties of an object, children included.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ObjectPropertyInfo>, preconfig)]
pub struct QomList {
    /// absolute, or the end of a path if only one object has it
    pub path: String,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ObjectPropertyInfo {
    pub name: String,
    /// `bool`, `int`, `string`, `child<T>`, `link<T>`, ...
    #[qapi(name = "type")]
    pub kind: String,
    pub description: Option<String>,
    pub default_value: Option<Value>,
}

/// The value of a property; children and links as the path of the object.
#[derive(Command, Debug, Clone)]
#[command(reply = Value, preconfig)]
pub struct QomGet {
    pub path: String,
    pub property: String,
}

/// Sets a property.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct QomSet {
    pub path: String,
    pub property: String,
    pub value: Value,
}

/// The types of objects.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ObjectTypeInfo>, preconfig)]
pub struct QomListTypes {
    /// only those that are of this type or have this interface
    pub implements: Option<String>,
    /// abstract types too
    #[qapi(name = "abstract")]
    pub with_abstract: Option<bool>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct ObjectTypeInfo {
    pub name: String,
    /// present for abstract types
    #[qapi(name = "abstract")]
    pub is_abstract: Option<bool>,
    pub parent: Option<String>,
}

/// The properties that objects of a type have.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ObjectPropertyInfo>, preconfig)]
pub struct QomListProperties {
    pub typename: String,
}

/// The properties that `-device` and `device_add` take for a model.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<ObjectPropertyInfo>, preconfig)]
pub struct DeviceListProperties {
    pub typename: String,
}

/// Adds a device, as `-device` does. The guest is told where the bus has a way to.
#[derive(Command, Debug, Clone)]
#[command(name = "device_add", features("json-cli", "json-cli-hotplug"))]
pub struct DeviceAdd {
    /// the model
    pub driver: String,
    /// name of the bus, or id of the device that has it
    pub bus: Option<String>,
    pub id: Option<String>,
    /// properties of the model
    #[qapi(rest)]
    pub properties: Map,
}

/// Takes a device out. On a PCI bus the guest is asked to let it go, which may take long or
/// never happen; a reset of the machine does it too. `DEVICE_DELETED` tells that it is gone.
#[derive(Command, Debug, Clone)]
#[command(name = "device_del")]
pub struct DeviceDel {
    /// id, or path in the object tree
    pub id: String,
}

/// A device is gone; its id can be used again.
#[derive(Event, Debug, Clone)]
pub struct DeviceDeleted {
    pub device: Option<String>,
    /// in the object tree
    pub path: String,
}

/// Makes an object, as `-object` does.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct ObjectAdd {
    #[qapi(flatten)]
    pub kind: ObjectKind,
    pub id: String,
    /// properties in the old form; new clients give them beside `id`
    #[qapi(features("deprecated"))]
    pub props: Option<Value>,
    #[qapi(rest)]
    pub properties: Map,
}

/// The type of an object. Reads any name, because the registry of types decides; described as
/// [`ObjectOptions`], so that clients can see what there is.
#[derive(Debug, Clone)]
pub struct ObjectKind {
    pub qom_type: String,
}

impl qapi::Object for ObjectKind {
    fn require(fields: &qapi::Fields) -> qapi::Result<()> {
        fields.require::<String>("qom-type", &[])
    }
    fn take(fields: &mut qapi::Fields) -> qapi::Result<Self> {
        Ok(ObjectKind { qom_type: fields.take("qom-type", &[])? })
    }
    fn put(&self, into: &mut Map) {
        into.insert("qom-type".into(), self.qom_type.as_str().into());
    }
    fn shape(book: &mut qapi::Book, shape: &mut qapi::book::Shape) {
        ObjectOptions::shape(book, shape);
    }
}

/// The types of objects that users can make, with their properties.
#[derive(Describe, Debug, Clone)]
#[qapi(tag = "qom-type", tag_name = "ObjectType")]
// Few are made, and none is kept.
#[allow(clippy::large_enum_variant)]
pub enum ObjectOptions {
    /// TLS peers that a file lists
    AuthzListFile(AuthzListFileProperties),
    /// one TLS peer
    AuthzSimple(AuthzSimpleProperties),
    /// a thread that serves block devices
    Iothread(IothreadProperties),
    /// guest memory in a file
    MemoryBackendFile(MemoryBackendFileProperties),
    /// guest memory in an anonymous file
    MemoryBackendMemfd(MemoryBackendMemfdProperties),
    /// guest memory
    MemoryBackendRam(MemoryBackendProperties),
    /// entropy of the host's own generator
    RngBuiltin,
    /// entropy from a file or device
    RngRandom(RngRandomProperties),
    /// a password or key for other objects
    Secret(SecretProperties),
    /// limits that disks share
    ThrottleGroup(ThrottleGroupProperties),
    /// X.509 certificates and keys for TLS
    TlsCredsX509(TlsCredsX509Properties),
}

#[derive(Describe, Debug, Clone)]
pub struct AuthzListFileProperties {
    pub filename: String,
    /// read the file again when it changes
    pub refresh: Option<bool>,
}

#[derive(Describe, Debug, Clone)]
pub struct IothreadProperties {
    /// look for new work this long before sleeping, in ns; 0: never
    pub poll_max_ns: Option<i64>,
    /// what that time is multiplied by where it was too short; 0: the usual factor
    pub poll_grow: Option<i64>,
    /// what it is divided by where there was nothing to do; 0: it becomes 0
    pub poll_shrink: Option<i64>,
}

#[derive(Describe, Debug, Clone)]
pub struct AuthzSimpleProperties {
    /// distinguished name of the peer
    pub identity: String,
}

#[derive(Describe, Debug, Clone)]
pub struct TlsCredsX509Properties {
    /// folder with the certificates and the key
    pub dir: String,
    /// `client` (default) or `server`
    pub endpoint: Option<String>,
    /// check the files when the object is made
    pub sanity_check: Option<bool>,
    /// ask the peer for a certificate
    pub verify_peer: Option<bool>,
}

#[derive(Describe, Debug, Clone)]
pub struct MemoryBackendProperties {
    /// bytes
    pub size: u64,
    /// other processes can see what is written
    pub share: Option<bool>,
    /// take the host's memory at once
    pub prealloc: Option<bool>,
    /// part of a core dump of this process
    pub dump: Option<bool>,
}

#[derive(Describe, Debug, Clone)]
pub struct MemoryBackendFileProperties {
    #[qapi(flatten)]
    pub common: MemoryBackendProperties,
    /// file, or folder for a file without name
    pub mem_path: String,
}

#[derive(Describe, Debug, Clone)]
pub struct MemoryBackendMemfdProperties {
    #[qapi(flatten)]
    pub common: MemoryBackendProperties,
    /// use huge pages
    pub hugetlb: Option<bool>,
}

#[derive(Describe, Debug, Clone)]
pub struct RngRandomProperties {
    /// default /dev/urandom
    pub filename: Option<String>,
}

#[derive(Describe, Debug, Clone)]
pub struct ThrottleGroupProperties {
    pub limits: Option<ThrottleLimits>,
    #[qapi(name = "x-iops-total")]
    pub x_iops_total: Option<i64>,
    #[qapi(name = "x-iops-total-max")]
    pub x_iops_total_max: Option<i64>,
    #[qapi(name = "x-iops-total-max-length")]
    pub x_iops_total_max_length: Option<i64>,
    #[qapi(name = "x-iops-read")]
    pub x_iops_read: Option<i64>,
    #[qapi(name = "x-iops-read-max")]
    pub x_iops_read_max: Option<i64>,
    #[qapi(name = "x-iops-read-max-length")]
    pub x_iops_read_max_length: Option<i64>,
    #[qapi(name = "x-iops-write")]
    pub x_iops_write: Option<i64>,
    #[qapi(name = "x-iops-write-max")]
    pub x_iops_write_max: Option<i64>,
    #[qapi(name = "x-iops-write-max-length")]
    pub x_iops_write_max_length: Option<i64>,
    #[qapi(name = "x-bps-total")]
    pub x_bps_total: Option<i64>,
    #[qapi(name = "x-bps-total-max")]
    pub x_bps_total_max: Option<i64>,
    #[qapi(name = "x-bps-total-max-length")]
    pub x_bps_total_max_length: Option<i64>,
    #[qapi(name = "x-bps-read")]
    pub x_bps_read: Option<i64>,
    #[qapi(name = "x-bps-read-max")]
    pub x_bps_read_max: Option<i64>,
    #[qapi(name = "x-bps-read-max-length")]
    pub x_bps_read_max_length: Option<i64>,
    #[qapi(name = "x-bps-write")]
    pub x_bps_write: Option<i64>,
    #[qapi(name = "x-bps-write-max")]
    pub x_bps_write_max: Option<i64>,
    #[qapi(name = "x-bps-write-max-length")]
    pub x_bps_write_max_length: Option<i64>,
    #[qapi(name = "x-iops-size")]
    pub x_iops_size: Option<i64>,
}

/// Bytes and operations a second; a burst rate (`max`) may last for its length in seconds.
#[derive(Describe, Debug, Clone)]
pub struct ThrottleLimits {
    pub iops_total: Option<i64>,
    pub iops_total_max: Option<i64>,
    pub iops_total_max_length: Option<i64>,
    pub iops_read: Option<i64>,
    pub iops_read_max: Option<i64>,
    pub iops_read_max_length: Option<i64>,
    pub iops_write: Option<i64>,
    pub iops_write_max: Option<i64>,
    pub iops_write_max_length: Option<i64>,
    pub bps_total: Option<i64>,
    pub bps_total_max: Option<i64>,
    pub bps_total_max_length: Option<i64>,
    pub bps_read: Option<i64>,
    pub bps_read_max: Option<i64>,
    pub bps_read_max_length: Option<i64>,
    pub bps_write: Option<i64>,
    pub bps_write_max: Option<i64>,
    pub bps_write_max_length: Option<i64>,
    /// bytes that count as one operation
    pub iops_size: Option<i64>,
}

#[derive(Describe, Debug, Clone)]
pub struct SecretProperties {
    pub data: Option<String>,
    /// file that holds it
    pub file: Option<String>,
    pub format: Option<SecretFormat>,
    /// secret with the key that `data` is encrypted with (AES-256-CBC)
    pub keyid: Option<String>,
    /// base64
    pub iv: Option<String>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretFormat {
    Raw,
    Base64,
}

/// Removes an object made by the user.
#[derive(Command, Debug, Clone)]
#[command(preconfig)]
pub struct ObjectDel {
    pub id: String,
}

/// The I/O threads.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<IothreadInfo>, preconfig)]
pub struct QueryIothreads {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct IothreadInfo {
    pub id: String,
    /// host thread
    pub thread_id: i64,
    /// how long the thread looks for new work before it sleeps, in ns; 0: it does not
    pub poll_max_ns: i64,
    /// what that time is multiplied by where it was too short; 0: the usual factor
    pub poll_grow: i64,
    /// what it is divided by where the thread had nothing to do; 0: it becomes 0
    pub poll_shrink: i64,
}

/// The guest opened or closed a port of a virtio serial device.
#[derive(Event, Debug, Clone)]
#[event(throttle("id"))]
pub struct VserportChange {
    pub id: String,
    pub open: bool,
}
