//! What a person would name as one: the processes of a container or a systemd unit under one name, or those of one
//! program.

use std::{fmt, sync::Arc};

use crate::model::processes::Process;

/// Processes that findings and series speak of as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// The name of the processes.
    pub comm: Arc<str>,
    pub place: Place,
}

/// Where its processes run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In the container with this id.
    Container(Arc<str>),
    /// In this systemd service.
    Unit(Arc<str>),
    /// In neither: programs of one name and executable.
    Program(Option<Arc<str>>),
}

impl Workload {
    pub fn of(process: &Process) -> Self {
        let container =
            process.container.as_ref().map(|container| Place::Container(container.id.as_str().into()));
        let unit = || Some(Place::Unit(process.cgroup.as_deref().and_then(service)?.into()));
        let place = container.or_else(unit).unwrap_or_else(|| Place::Program(process.exe.clone()));
        Self { comm: process.comm.clone(), place }
    }

    /// The systemd service, if it is one.
    pub fn unit(&self) -> Option<&str> {
        match &self.place {
            Place::Unit(unit) => Some(unit),
            Place::Container(_) | Place::Program(_) => None,
        }
    }
}

impl fmt::Display for Workload {
    /// The name, and where it runs if that says more: `orders (container 0123456789ab)`, `orders (orders.service)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.comm)?;
        match &self.place {
            Place::Container(id) => write!(f, " (container {})", id.get(..12).unwrap_or(id)),
            Place::Unit(unit) => write!(f, " ({unit})"),
            Place::Program(_) => Ok(()),
        }
    }
}

/// The innermost systemd service of a cgroup path. The services of systemd itself that run what users start are none:
/// `user@1000.service`.
fn service(cgroup: &str) -> Option<&str> {
    let unit = cgroup.rsplit('/').find(|part| part.ends_with(".service"))?;
    (!unit.starts_with("user@")).then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_a_path_is_the_innermost_that_is_not_a_users_manager() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/nginx.service/worker", Some("nginx.service")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/db.service", Some("db.service")),
            ("/user.slice/user-1000.slice/user@1000.service/session.slice", None),
            ("/user.slice/user-0.slice/session-3.scope", None),
            ("/", None),
        ] {
            assert_eq!(service(path), unit, "{path}");
        }
    }
}
