//! Users and passwords (RFC 7617), as bcrypt hashes.
//!
//! A hash is made to be expensive, so that whoever sends wrong passwords could keep a processor busy. Passwords are
//! checked one at a time, with pauses; one that was right is known from then on. Clients of one address stand in one
//! queue of their own, so that those of others need not wait behind them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{hmac, rand::SystemRandom};
use tokio::sync::{OwnedMutexGuard, Semaphore, oneshot};

/// The greatest cost of a hash: some 2 s of a processor.
pub(super) const MAX_COST: u32 = 15;
/// A check that took 1 ms is followed by a pause of 9 ms: together they take at most a tenth of one processor.
const PAUSE_SHARE: u32 = 9;
/// Limit for a client's turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Who may ask.
#[derive(Debug)]
pub(super) struct Users {
    /// Hashes by name.
    hashes: BTreeMap<String, String>,
    key: hmac::Key,
    /// By name the password that was right, under `key`: the password itself is not kept.
    known: Mutex<BTreeMap<String, hmac::Tag>>,
}

/// A name and a password.
#[derive(Clone)]
pub(super) struct Credentials {
    name: String,
    password: Vec<u8>,
}

impl Credentials {
    /// `None` where there are none, or they are malformed.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8(decoded[..colon].to_vec()).ok()?;
        Some(Self { name, password: decoded[colon + 1..].to_vec() })
    }
}

impl Users {
    /// # Errors
    /// When the kernel gives no random bytes.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "basic_auth_users: no random bytes".to_owned())?;
        Ok(Self { hashes, key, known: Mutex::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn knows(&self, asked: &Credentials) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(&asked.name)
            .is_some_and(|tag| hmac::verify(&self.key, &asked.password, tag.as_ref()).is_ok())
    }

    /// Compares the password with the user's hash. That of an unknown name takes as long, and is wrong.
    fn check(&self, asked: &Credentials) -> bool {
        let hash = self.hashes.get(&asked.name);
        let compared = hash.or_else(|| self.hashes.values().next());
        let is_same = compared.is_some_and(|hash| bcrypt::verify(&asked.password, hash).unwrap_or(false));
        let is_right = is_same && hash.is_some();
        if is_right {
            let tag = hmac::sign(&self.key, &asked.password);
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(asked.name.clone(), tag);
        }
        is_right
    }
}

/// Whose turn it is to have a password checked.
#[derive(Debug)]
pub(super) struct Turns {
    one: Arc<Semaphore>,
    by_address: Mutex<HashMap<Option<IpAddr>, Arc<tokio::sync::Mutex<()>>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { one: Arc::new(Semaphore::new(1)), by_address: Mutex::default() }
    }
}

impl Turns {
    /// Whether the credentials are those of a user. `None` when it was not their turn in time.
    pub(super) async fn check(
        &self,
        users: &Arc<Users>,
        asked: Credentials,
        from: Option<IpAddr>,
    ) -> Option<bool> {
        if users.knows(&asked) {
            return Some(true);
        }
        let checked = async {
            let _of_address = self.of_address(from).await;
            let turn = Arc::clone(&self.one).acquire_owned().await.ok()?;
            // Somebody may have asked the same meanwhile.
            if users.knows(&asked) {
                return Some(true);
            }
            let (users, (reply, answer)) = (Arc::clone(users), oneshot::channel());
            // Also when the client hangs up, a check that has begun takes its turn to the end of the pause.
            tokio::spawn(async move {
                let began = Instant::now();
                let is_right = tokio::task::spawn_blocking(move || users.check(&asked)).await;
                // The client may have hung up.
                let _ = reply.send(is_right.unwrap_or(false));
                tokio::time::sleep(began.elapsed() * PAUSE_SHARE).await;
                drop(turn);
            });
            answer.await.ok()
        };
        tokio::time::timeout(TURN_TIMEOUT, checked).await.ok().flatten()
    }

    async fn of_address(&self, from: Option<IpAddr>) -> OwnedMutexGuard<()> {
        let queue = {
            let mut queues = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody stands in those that only this map holds.
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
            Arc::clone(queues.entry(from).or_default())
        };
        queue.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The least cost that bcrypt has.
    const COST: u32 = 4;

    fn users() -> Arc<Users> {
        let hash = bcrypt::hash("right", COST).unwrap();
        Arc::new(Users::new([("someone".to_owned(), hash)].into()).unwrap())
    }

    fn credentials(name: &str, password: &str) -> Credentials {
        Credentials { name: name.to_owned(), password: password.into() }
    }

    #[test]
    fn names_and_passwords_are_read_from_the_header() {
        let of = |value: &str| {
            Credentials::of(&[(AUTHORIZATION, value.parse().unwrap())].into_iter().collect())
                .map(|found| (found.name, String::from_utf8(found.password).unwrap()))
        };
        let found = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(of("Basic YTpiOmM="), found("a", "b:c"));
        assert_eq!(of("basic  Og=="), found("", ""));
        for malformed in ["", "Basic", "Basic !", "Basic YQ==", "Bearer YTpi", "Basic /zpi"] {
            assert_eq!(of(malformed), None, "{malformed}");
        }
    }

    #[tokio::test]
    async fn a_password_that_was_right_is_not_checked_again_and_a_wrong_one_is() {
        let (users, turns) = (users(), Turns::default());
        let here = Some(Ipv4Addr::LOCALHOST.into());
        assert_eq!(turns.check(&users, credentials("someone", "wrong"), here).await, Some(false));
        assert_eq!(turns.check(&users, credentials("someone", "right"), here).await, Some(true));
        // Nobody's turn comes any more.
        turns.one.close();
        assert_eq!(turns.check(&users, credentials("someone", "right"), here).await, Some(true));
        for (name, password) in [("someone", "wrong"), ("someone", ""), ("", ""), ("other", "right")] {
            assert_eq!(
                turns.check(&users, credentials(name, password), here).await,
                None,
                "{name} {password}"
            );
        }
    }

    #[test]
    fn who_is_unknown_is_refused_with_any_password() {
        let users = users();
        assert!(users.check(&credentials("someone", "right")));
        assert!(!users.check(&credentials("other", "right")));
        assert!(!Users::new(BTreeMap::new()).unwrap().check(&credentials("", "")));
    }

    #[tokio::test]
    async fn whoever_sends_many_wrong_passwords_does_not_stand_before_another_address() {
        let (users, turns) = (users(), Arc::new(Turns::default()));
        let [attacker, other] = [1, 2].map(|last| Some(Ipv4Addr::new(10, 0, 0, last).into()));
        let before = turns.one.clone().acquire_owned().await.unwrap();
        let wrong: Vec<_> = (0..64)
            .map(|_| {
                let (users, turns) = (Arc::clone(&users), Arc::clone(&turns));
                tokio::spawn(
                    async move { turns.check(&users, credentials("someone", "wrong"), attacker).await },
                )
            })
            .collect();
        tokio::task::yield_now().await;
        let right = {
            let (users, turns) = (Arc::clone(&users), Arc::clone(&turns));
            tokio::spawn(async move { turns.check(&users, credentials("someone", "right"), other).await })
        };
        tokio::task::yield_now().await;
        drop(before);
        assert_eq!(right.await.unwrap(), Some(true));
        assert!(wrong.iter().filter(|one| one.is_finished()).count() <= 2);
        for one in wrong {
            one.abort();
        }
    }
}
