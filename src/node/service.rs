//! A service's requests as they come, and their answers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::{FutureExt, Stream, StreamExt};
use r2r::{Node, QosProfile, ServiceRequest, WrappedServiceTypeSupport};

/// The stream of one service's requests.
pub struct Service<S: WrappedServiceTypeSupport> {
    requests: Box<dyn Stream<Item = ServiceRequest<S>> + Unpin>,
}

impl<S: WrappedServiceTypeSupport + 'static> Service<S> {
    /// Offers the service; requests arrive while the node spins.
    pub fn new(node: &mut Node, name: &str, qos: QosProfile) -> r2r::Result<Self> {
        Ok(Self { requests: Box::new(node.create_service::<S>(name, qos)?) })
    }

    /// Takes every request that has arrived.
    pub fn drain(&mut self, take: impl FnMut(ServiceRequest<S>)) {
        drain(&mut self.requests, take);
    }
}

/// Takes everything that a stream of r2r holds, without waiting.
pub fn drain<T>(stream: &mut (impl Stream<Item = T> + Unpin), mut take: impl FnMut(T)) {
    while let Some(Some(item)) = stream.next().now_or_never() {
        take(item);
    }
}

/// Sends an answer. A client that is gone, or an answer that r2r cannot send, costs a line in the log.
pub fn answer<S: WrappedServiceTypeSupport + 'static>(request: ServiceRequest<S>, response: S::Response) {
    // r2r panics on texts that C cannot have; what we send is cleaned of NULs, and this is the net below.
    match catch_unwind(AssertUnwindSafe(|| request.respond(response))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("a service's answer was not sent: {error}"),
        Err(_) => tracing::error!("a service's answer could not be made"),
    }
}
