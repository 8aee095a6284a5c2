-- Holds the queue, or lets it go. ARGV: held, event, now, sender.
redis.call('HSET', Q .. 'meta', 'held', ARGV[1])
log('', ARGV[2], ARGV[3])
tell(ARGV[4], 'queue')
return { 'ok' }
