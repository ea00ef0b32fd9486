//! A whole answer out of its events.

use anyhow::bail;
use tokio::sync::mpsc::UnboundedReceiver;
use viscache::batch::Event;

/// Waits for the end of an answer; gives its text, without spaces around it.
///
/// # Errors
/// An answer that failed.
pub(super) fn whole(mut events: UnboundedReceiver<Event>) -> anyhow::Result<String> {
    let mut text = String::new();
    loop {
        match events.blocking_recv() {
            Some(Event::Token { text: more, .. }) => text += &more,
            Some(Event::Done(finish)) => {
                text += &finish.text;
                return Ok(text.trim().to_owned());
            }
            Some(Event::Failed(error)) => return Err(error.into()),
            None => bail!("the decoder has stopped"),
        }
    }
}
