-- Orders of a worker that it has not answered. ARGV: worker, now.
local open = {}
for _, command in ipairs(redis.call('ZRANGE', Q .. 'orders:' .. ARGV[1], 0, -1)) do
    local order = redis.call('HMGET', Q .. 'order:' .. command, 'worker', 'order', 'sent', 'expires', 'answer')
    if order[1] and not order[5] and tonumber(order[4]) > tonumber(ARGV[2]) then
        open[#open + 1] = { command, order[1], order[2], order[3], order[4], '' }
    end
end
return open
