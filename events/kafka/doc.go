// Package kafka carries Watermill messages over Kafka: a publisher, a subscriber and the few questions
// a service has for a broker. It is the only place that knows the Kafka client, segmentio/kafka-go.
//
// # A record and a message
//
// A record becomes a message, whatever it holds: value = payload, headers = metadata one to one, and the
// header ce_id = UUID (a CloudEvents id is a Watermill UUID, so a resend is the same message). Nothing
// is decoded here, so nothing can fail to decode. A record without ce_id gets the UUID
// <topic>/<partition>/<offset>, which is the same at every delivery. Metadata is a map and cannot hold
// what Kafka allows (a name twice, an order, a null); [HeadersFromContext] has the headers as they came
// and [WithRecord] makes the publisher write headers exactly.
//
// # Publishing
//
// Every record has a key: the metadata ce_partitionkey, else what [PublisherOptions].Key says. Records of
// one partition wait in one queue, leave it as batches, and one batch per partition is on its way at a
// time; so order per key holds, also when a batch is sent again, and several keys travel side by side.
// acks=all always. A broker that is away is waited for until the context ends. What did not get through is
// named in a [PublishError], and per key that is always a tail: nothing is written behind a message that
// failed in the same call.
//
// # Subscribing
//
// One consumer group per service and topic ([GroupID]); a partition is owned by one member. Each
// partition has a fetcher, which reads ahead by one response, and a deliverer, which owns everything else:
//
//	            fetched             take                    Ack
//	log ──────► pending ──────────► in flight ──────────► acknowledged ──► committed
//	                                 │     ▲                (window)        (every 100 ms)
//	                            Nack │     │ take again, after NackDelay
//	                                 ▼     │
//	                                waiting
//
// Messages go to the channel in runs, through one goroutine per subscription, because a trip through the
// deliverer for each would cost more than the message. The channel has no buffer, and a run can be recalled: a
// message is in somebody's hands or it is not.
//
// At most MaxInFlight messages lie between the oldest unacknowledged one and the newest handed out, in
// order. The offset committed is the highest one below which everything is acknowledged. A Nack puts
// that message and the unacknowledged ones behind it back, cancels their contexts and hands them out
// again in order; what was acknowledged stays acknowledged.
//
// When the group rebalances, the contexts of what is in flight are cancelled first; what was acknowledged
// before is committed while the group still allows it; an acknowledgement that comes later changes
// nothing, because the message may have a new owner. [CommitSync] is the other way round: it commits
// before the work starts and says whether that worked, so the work is done at most once. A commit can say
// who made it ([SubscriberOptions].CommitMetadata), and, since the member is given what was there before, who made those before it.
//
// A broker that restarts ends the generation. The member joins again by itself, with the offsets the
// broker has; messages in flight are delivered again.
//
// An offset that the broker no longer (or not yet) has is an alarm and stops that partition
// ([OffsetError]); it never silently becomes another offset.
//
// # Reading
//
// Responses to fetches are read here and not by kafka-go (wire.go, batch.go): records share the memory of their
// batch instead of being copied one by one, control batches and emptied batches are stepped over by their
// last offset (also in what a group commits: one that has everything is at the end of the log), the broker's append time is kept, and what a compressed batch may become is bounded. Record
// formats before v2 (Kafka before 0.11) are an alarm, not a guess.
//
// # Start-up latency
//
// kafka-go waits 5 s after a failed join, and the first join of a fresh cluster fails because the broker
// is still creating its offsets topic; members learn of a rebalance by their heartbeat, every 3 s. Here
// both are below 300 ms and 500 ms. Kafka itself adds group.initial.rebalance.delay.ms (3 s by default)
// for a group that is empty, which only the broker's settings can change.
package kafka
