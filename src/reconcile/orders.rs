//! What operators order: to apply, to confirm, to go back.

use std::time::Duration;

use super::Daemon;
use super::control::{Answer, Order, What};
use super::rollout::{Rollout, Unconfirmed, until, way_back};
use crate::apply::generation;

/// How much longer than its own time an unconfirmed apply may take, should the daemon be killed in the middle of it.
const APPLYING: Duration = Duration::from_secs(60);

/// What remains to be done after the reconcile that an order causes.
pub(super) enum Then {
    Nothing,
    /// Ask for confirmation of what has come to serve in the place of a generation.
    AwaitConfirmation {
        instead_of: Option<u32>,
        within: Duration,
    },
    /// Take it back if it did not work.
    Restore(Rollout),
}

impl Daemon {
    /// What an order changes before the reconcile; the answer at once where none is needed.
    pub(super) fn begin(&mut self, order: &Order) -> Result<Then, Answer> {
        let current = generation::current(&*self.machine, &self.state).ok().flatten();
        match order.what {
            What::Apply { confirm_within } => {
                self.rollout.held = None;
                let then = match confirm_within {
                    None => Then::Nothing,
                    Some(within) => {
                        // On disk before anything is live, so that a kill in between leads back.
                        self.rollout.unconfirmed = current.map(|back_to| Unconfirmed {
                            back_to,
                            until: until(within + APPLYING),
                        });
                        Then::AwaitConfirmation {
                            instead_of: current,
                            within,
                        }
                    }
                };
                self.keep_rollout();
                Ok(then)
            }
            What::Rollback { to } => {
                let way = way_back(&*self.machine, &self.state, to, current);
                let number = way.map_err(|why| self.refused(why.to_string()))?;
                let before = self.rollout.clone();
                let file = self.source.now().ok().map(|loaded| self.source.wish(loaded));
                let input = file.map(|wish| wish.input(self.source.digest()));
                self.rollout
                    .hold(number, order.by.clone(), input.unwrap_or_default());
                self.keep_rollout();
                Ok(Then::Restore(before))
            }
            What::Confirm => {
                let Some(unconfirmed) = self.rollout.unconfirmed.take() else {
                    return Err(self.refused("nothing waits to be confirmed".to_owned()));
                };
                self.rollout.confirmed = current;
                self.keep_rollout();
                let number = current.unwrap_or_default();
                let message = format!(
                    "generation {number} is confirmed: generation {} is not needed any more",
                    unconfirmed.back_to
                );
                self.teller.remember("confirmed", &order.by, message.clone());
                self.teller.count(|counters| counters.confirmed += 1);
                self.teller.rollout(&self.rollout);
                Err(Answer {
                    live: true,
                    changed: false,
                    generation: current,
                    message,
                })
            }
        }
    }

    /// What an order changes after the reconcile, and what is answered.
    pub(super) fn done(&mut self, then: Then, mut answer: Answer) -> Answer {
        match then {
            Then::Nothing => {}
            Then::Restore(before) => {
                if !answer.live {
                    self.rollout = before;
                    self.keep_rollout();
                } else if let Some(held) = &self.rollout.held {
                    self.teller.count(|counters| counters.gone_back += 1);
                    answer.message += &format!(
                        "\nthe settings of generation {} are held until the configuration changes, or `dstack-vpc apply`",
                        held.generation
                    );
                }
            }
            Then::AwaitConfirmation { instead_of, within } => {
                self.rollout.unconfirmed = None;
                if answer.live {
                    answer.message += &self.await_confirmation(instead_of, answer.generation, within);
                }
                self.keep_rollout();
            }
        }
        self.teller.rollout(&self.rollout);
        answer
    }

    /// What the answer says of it.
    fn await_confirmation(&mut self, instead_of: Option<u32>, live: Option<u32>, within: Duration) -> String {
        // The file's change may have been noticed, and gone live, before it was asked for.
        let already = instead_of == live;
        if already && self.rollout.confirmed == live {
            return " and confirmed".to_owned();
        }
        let back_to = match already {
            false => instead_of,
            true => way_back(&*self.machine, &self.state, None, live).ok(),
        };
        let Some(back_to) = back_to else {
            return "\nthere is no earlier generation to go back to, so it need not be confirmed".to_owned();
        };
        self.rollout.unconfirmed = Some(Unconfirmed {
            back_to,
            until: until(within),
        });
        format!(
            "\ngeneration {back_to} serves again in {} s, unless `dstack-vpc confirm` is given before",
            within.as_secs_f32()
        )
    }

    fn refused(&self, message: String) -> Answer {
        Answer {
            live: false,
            changed: false,
            generation: generation::current(&*self.machine, &self.state).ok().flatten(),
            message,
        }
    }
}
